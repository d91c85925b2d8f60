# ADDRESS USER PASSWORD FILE: downloads a file by two openssl s_client, and prints it.
connect() { timeout 30 openssl s_client -quiet -tls1_2 "${@:2}" -connect "$1" 2>/dev/null; }
coproc control { connect "$1:21" -crlf -starttls ftp -sess_out session; }
# say LINE CODE, and wait for that reply.
say() {
    echo "$1" >&"${control[1]}"
    until [[ $reply == $2\ * ]]; do read -r -t 20 reply <&"${control[0]}"; done
}
say "USER $2" 331
say "PASS $3" 230
say "PBSZ 0" 200
say "PROT P" 200
say PASV 227
IFS=, read -r _ _ _ _ high low <<<"${reply//[^0-9,]/}"
echo "RETR $4" >&"${control[1]}"
connect "$1:$((high * 256 + low))" -sess_in session </dev/null
echo QUIT >&"${control[1]}"
wait
