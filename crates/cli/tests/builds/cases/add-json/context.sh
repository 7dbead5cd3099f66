echo 1 >'a b'
