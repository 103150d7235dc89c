package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/names"
	"github.com/sluice-vpn/sluice/cmd/internal/proxy"
)

// needInterface are flags that say what to do with an interface.
var needInterface = []string{"fail-closed", "release", "table", "mark", "keep", "names", "names-file", "no-masquerade"}

// userspaceOptions are those of -userspace, nil without it.
func userspaceOptions(cmd *cli.Command) (*member.Userspace, error) {
	if !cmd.Bool("userspace") {
		for _, name := range []string{"socks5", "http-proxy", "forward"} {
			if cmd.IsSet(name) {
				return nil, usageError{fmt.Sprintf("-%s is for -userspace: with an interface programs need no proxy", name)}
			}
		}
		return nil, nil
	}
	for _, name := range needInterface {
		if cmd.IsSet(name) && (name != "names" || cmd.String(name) != names.Off) {
			return nil, usageError{fmt.Sprintf("-%s is for an interface, which -userspace does without", name)}
		}
	}
	u := &member.Userspace{}
	var err error
	if u.SOCKS5 = cmd.String("socks5"); u.SOCKS5 != "" {
		u.SOCKS5, err = proxy.Address("-socks5", u.SOCKS5)
	}
	if u.HTTPProxy = cmd.String("http-proxy"); u.HTTPProxy != "" && err == nil {
		u.HTTPProxy, err = proxy.Address("-http-proxy", u.HTTPProxy)
	}
	if err != nil {
		return nil, usageError{err.Error()}
	}
	for word := range strings.SplitSeq(cmd.String("forward"), ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		f, err := proxy.ParseForward(word)
		if err != nil {
			return nil, usageError{err.Error()}
		}
		u.Forwards = append(u.Forwards, f)
	}
	if cmd.Name != "gateway" && u.SOCKS5 == "" && u.HTTPProxy == "" && len(u.Forwards) == 0 {
		return nil, usageError{"-userspace makes no interface: say with -socks5 1080, -http-proxy 8080 or -forward 8080=10.0.0.7:80 how programs reach the tunnel"}
	}
	return u, nil
}
