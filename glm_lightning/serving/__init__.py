"""The OpenAI-compatible HTTP interface over `glm_lightning.inference`."""
