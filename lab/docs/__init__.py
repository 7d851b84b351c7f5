"""What fills the tables of the documentation."""
