mkdir d; echo a >d/a; ln -s d/a l1; ln -s /abs l2; ln -s . self; ln -s ../up d/l3; touch -h -d @9 l1 l2 self d/l3
