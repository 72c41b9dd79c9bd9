"""What a person sees in a browser: the connection form, tasks, links and logs."""
