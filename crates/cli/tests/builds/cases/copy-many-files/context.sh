mkdir d; for i in $(seq 1 120); do echo $i >d/f$i; done
