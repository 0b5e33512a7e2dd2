"""Many runs of one experiment: which trials, their work, their results. Imports torch late."""
