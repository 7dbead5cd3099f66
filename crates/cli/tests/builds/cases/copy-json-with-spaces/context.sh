echo 1 >'a b'; mkdir 'c d'; echo 2 >'c d/e f'
