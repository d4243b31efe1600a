"""What a hospital runs: acceptance, batches, a PACS."""
