"""Models on one GPU: every launch reads and writes places that stay, so that a step can be captured."""
