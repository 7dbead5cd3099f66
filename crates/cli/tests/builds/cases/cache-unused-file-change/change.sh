echo changed >other; echo new >more
