# Completes commands and flags of sluice in bash. The program itself says what may be next; it is handed the words as they were typed, and
# nothing of them is expanded or run.
_sluice() {
	local line current="${COMP_WORDS[COMP_CWORD]}"
	local -a words=("${COMP_WORDS[@]:0:COMP_CWORD}")
	words[0]="${words[0]/#\~\//$HOME/}"
	[[ $current != -* ]] || words+=("$current")
	COMPREPLY=()
	while IFS= read -r line; do
		line="${line%%:*}"
		[[ -z $line || $line != "$current"* ]] || COMPREPLY+=("$line")
	done < <("${words[@]}" --generate-shell-completion 2>/dev/null)
}
complete -o bashdefault -o default -F _sluice sluice
