echo 1 >one.txt
