"""What a user can ask of a partition, a state or a step."""
