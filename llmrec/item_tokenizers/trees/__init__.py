"""Trees over the catalogue: by balanced clusters, by co-occurrence, by categories."""
