"""Training of crystal language models with the Trainer of transformers."""
