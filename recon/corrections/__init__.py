"""What happens between the annihilation and the count: factors and additive terms."""
