"""What is trained and how: one final LightningModule a file, over one abstract base."""
