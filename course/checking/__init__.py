"""What an exercise is, and how an answer is judged. The worker process imports `wire` and `worker` alone."""
