echo a >target; ln -s target l1; mkdir dir; echo x >dir/f; ln -s dir l2
