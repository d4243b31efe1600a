"""The autoencoder of Wei et al. 2018, and its compiled arithmetic."""
