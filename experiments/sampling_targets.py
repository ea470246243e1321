"""The targets of samplings: how good the pictures are, how near to those of plaintext; and one call at full size."""
