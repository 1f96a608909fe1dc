"""From a resolved run to a trained one: submit, observe, cancel, and the side of the job."""
