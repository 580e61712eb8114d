"""The language model: new tokens, the folder that recommends, its card and its updates."""
