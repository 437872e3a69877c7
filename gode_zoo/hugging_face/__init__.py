"""The Hugging Face Hub: folders as they are published, checks, downloads and uploads."""
