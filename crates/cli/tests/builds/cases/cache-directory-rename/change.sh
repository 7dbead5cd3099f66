mv d1 d2
