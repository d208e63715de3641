// Package connect runs CleverTap's connect check
// (https://developer.clevertap.com/docs/connect-api).
package connect

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/netguard"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
)

// PartnerName is what we introduce ourselves as.
const PartnerName = "mixpanel"

// Client is the check over HTTP.
type Client struct{ http *http.Client }

// New makes a client; private addresses are refused unless allowPrivate.
func New(allowPrivate bool) *Client {
	return &Client{http: &http.Client{
		Transport:     otelhttp.NewTransport(netguard.Transport(allowPrivate, 2)),
		Timeout:       15 * time.Second,
		CheckRedirect: netguard.NoRedirect,
	}}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

const tries = 2

// Check implements connector.Checker. Success needs a 2xx, a JSON object and
// status "success"; anything else is not a connection.
func (c *Client) Check(ctx context.Context, cn connector.Connector) (connector.State, string) {
	var state connector.State
	var reason string
	for i := range tries {
		if i > 0 {
			select {
			case <-ctx.Done():
				return connector.Unreachable, "the check was interrupted"
			case <-time.After(250 * time.Millisecond):
			}
		}
		var again bool
		if state, reason, again = c.once(ctx, cn); !again {
			break
		}
	}
	return state, reason
}

func (c *Client) once(ctx context.Context, cn connector.Connector) (state connector.State, reason string, again bool) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cn.BaseURL()+"/v1/connect?partner="+PartnerName, nil)
	if err != nil {
		return connector.Unreachable, "the host URL can't be called", false
	}
	req.Header["X-CleverTap-Account-Id"] = []string{cn.AccountID} // written exactly so, not canonicalized
	req.Header["X-CleverTap-Passcode"] = []string{cn.Passcode}
	resp, err := c.http.Do(req)
	if err != nil {
		if f := fault.As(err); f != nil {
			return connector.Unreachable, f.Public, false
		}
		return connector.Unreachable, fmt.Sprintf("no answer from %s", req.URL.Host), false
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return connector.Unreachable, fmt.Sprintf("the answer of %s broke off", req.URL.Host), true
	}
	var body struct {
		Status  string `json:"status"`
		Error   string `json:"error"`
		Message string `json:"message"`
	}
	perr := json.Unmarshal(raw, &body)
	words := firstOf(body.Error, body.Message, strings.TrimSpace(string(raw)))
	words = clean(strings.ReplaceAll(words, cn.Passcode, "***"))
	switch {
	case resp.StatusCode/100 == 2 && perr == nil && body.Status == "success":
		return connector.Connected, "", false
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden || (perr == nil && body.Status == "fail" && resp.StatusCode/100 == 2):
		return connector.Refused, fmt.Sprintf("CleverTap says: %s (HTTP %d)", words, resp.StatusCode), false
	default:
		return connector.Unreachable, fmt.Sprintf("unexpected answer, HTTP %d: %s", resp.StatusCode, words), resp.StatusCode >= 500
	}
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return "(empty body)"
}

// clean keeps a foreign text short and printable.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return s
}
