"""A model for others: its card, and its way to the Hugging Face hub."""
