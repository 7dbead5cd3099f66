echo changed >b
