"""Recommenders to beat: popularity, item-kNN and SASRec, behind the same `Recommender` protocol as our model."""
