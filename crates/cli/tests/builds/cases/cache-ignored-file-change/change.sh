echo changed >ignored
