"""Networks that are used for ranking alone, one a file; the recommenders stand beside this folder."""
