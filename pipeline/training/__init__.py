"""Makes generalists and experts: contrastive classification over class prompts, resumable to the byte."""
