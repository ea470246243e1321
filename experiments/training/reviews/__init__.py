"""reviews-tiny, a small BERT that tells good reviews from bad ones, and its student with a quadratic."""
