"""Many runs of one experiment: which, on what, how they ended. Imports torch only at the end."""
