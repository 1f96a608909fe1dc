"""Small commands for the maintenance of data and of this repository."""
