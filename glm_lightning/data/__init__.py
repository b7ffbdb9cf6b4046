"""Files to rows, rows to conversations, conversations to ids and labels on disk, those to batches."""
