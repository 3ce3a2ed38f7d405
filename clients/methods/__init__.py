"""Terms of published methods whose strategies are this project's: one file each."""
