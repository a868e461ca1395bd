"""The kinds of mini-blocks: their statistics, matrices and preconditioned vectors."""
