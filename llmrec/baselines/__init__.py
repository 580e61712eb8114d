"""Recommenders to beat: popularity, item-kNN, content-kNN and SASRec, behind the `Recommender` protocol."""
