echo new >passwd; chmod 600 passwd; touch -d @11 passwd
