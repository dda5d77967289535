"""`reproduce`: the published figures beside every reading that the published text allows."""
