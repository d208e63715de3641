// Package clevertap is a client of CleverTap's server API: connect check,
// profile upload, custom lists, API segments, and the partner channel's messages. It
// makes one HTTP call a method and says precisely what the answer means;
// retries, concurrency and bookkeeping belong to the caller.
// Source: https://developer.clevertap.com/docs.
package clevertap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/netguard"
)

// Account is how to reach one CleverTap project.
type Account struct {
	// ID is the Project ID (Account ID).
	ID string
	// Passcode travels in its header only and appears in no error.
	Passcode string
	// BaseURL is the region's host or its override, without a trailing slash.
	BaseURL string
	// PartnerURL is where the partner channel's messages go.
	PartnerURL string
	// AdminEmail is where CleverTap mails the result of a custom list.
	AdminEmail string
}

// Options configure a Client.
type Options struct {
	// Timeout bounds one call, its answer included; default 60 s. The PUT of a
	// list file has ten times as long.
	Timeout time.Duration
	// AllowPrivate lets calls go to private, loopback and link-local addresses,
	// which are refused otherwise so that a connector can't reach our own network.
	AllowPrivate bool
	// MaxIdlePerHost is how many connections are kept; default 32.
	MaxIdlePerHost int
}

// Client calls CleverTap. It is safe for concurrent use.
type Client struct {
	traced, plain *http.Client
	timeout       time.Duration
	transport     *http.Transport
}

// New returns a client. Close it when done.
func New(o Options) *Client {
	if o.Timeout <= 0 {
		o.Timeout = 60 * time.Second
	}
	if o.MaxIdlePerHost <= 0 {
		o.MaxIdlePerHost = 32
	}
	tr := netguard.Transport(o.AllowPrivate, o.MaxIdlePerHost)
	tr.ResponseHeaderTimeout = 0 // the whole call has its own limit
	return &Client{
		traced: &http.Client{CheckRedirect: netguard.NoRedirect, Transport: otelhttp.NewTransport(tr,
			otelhttp.WithPropagators(propagation.TraceContext{}),
			otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.URL.Path }))},
		// Presigned URLs carry their authority in the query: they get no span.
		plain:   &http.Client{CheckRedirect: netguard.NoRedirect, Transport: tr},
		timeout: o.Timeout, transport: tr,
	}
}

// Close drops idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// answer is the part that CleverTap's bodies have in common.
type answer struct {
	Status  string          `json:"status"`
	Error   json.RawMessage `json:"error"`
	Message string          `json:"message"`
	Code    looseInt        `json:"code"`
}

func (a answer) text() string {
	var s string
	if json.Unmarshal(a.Error, &s) == nil && s != "" {
		return s
	}
	if len(a.Error) > 0 && string(a.Error) != "null" {
		return string(a.Error)
	}
	return a.Message
}

// looseInt reads a number that some endpoints write as text.
type looseInt int

// UnmarshalJSON never fails: a code that is no number is 0.
func (i *looseInt) UnmarshalJSON(b []byte) error {
	n, _ := strconv.Atoi(strings.Trim(string(b), `" `))
	*i = looseInt(n)
	return nil
}

// maxAnswer bounds what is read of an answer: 1,000 refused records with
// their echoes fit, an endless body does not.
const maxAnswer = 16 << 20

// call posts body to path and returns the body of a 2xx JSON answer.
func (c *Client) call(ctx context.Context, a Account, method, rawURL string, body []byte) ([]byte, int, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, rawURL, rd)
	if err != nil {
		return nil, 0, &Error{Class: Refused, Message: "the URL can't be called", cause: err}
	}
	req.Header.Set("X-CleverTap-Account-Id", a.ID)
	req.Header.Set("X-CleverTap-Passcode", a.Passcode)
	req.Header.Set("User-Agent", "cohortbridge")
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	resp, err := c.traced.Do(req)
	if err != nil {
		return nil, 0, noAnswer(err)
	}
	defer resp.Body.Close() //nolint:errcheck // the body was read; a failed close loses only the connection
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, 0, noAnswer(err)
	}
	if resp.StatusCode/100 == 2 {
		return raw, resp.StatusCode, nil
	}
	return raw, resp.StatusCode, statusError(resp.StatusCode, raw, a)
}

// noAnswer classifies a call that ended without an answer.
func noAnswer(err error) *Error {
	e := &Error{Class: Transient, Unanswered: true, cause: err}
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case fault.As(err) != nil: // netguard's refusal
		return &Error{Class: Refused, Message: fault.As(err).Public, cause: err}
	case errors.Is(err, context.DeadlineExceeded):
		e.Message = "no answer in time"
	case errors.Is(err, context.Canceled):
		e.Message = "the call was cancelled"
	case errors.As(err, &dns):
		e.Message, e.Unanswered = "the host's name can't be resolved", false
	case errors.As(err, &op) && op.Op == "dial":
		e.Message, e.Unanswered = "the host does not accept connections", false
	default:
		e.Message = "the connection broke before the answer"
	}
	return e
}

// statusError classifies an answer that is not 2xx (CleverTap reference §11.2).
func statusError(status int, raw []byte, a Account) *Error {
	e := &Error{Status: status, Class: Refused}
	var ans answer
	if json.Unmarshal(raw, &ans) == nil {
		e.Code, e.Message = int(ans.Code), clean(ans.text(), a)
	}
	if e.Message == "" {
		e.Message = http.StatusText(status)
	}
	switch {
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout:
		e.Class = Throttled
	case status >= 500:
		e.Class = Transient
	case status/100 == 3:
		e.Message = "the host answers with a redirect, which is not followed"
	}
	return e
}

// notJSON is a 2xx whose body is not what the API speaks: an unknown path on a
// valid host answers so.
func notJSON(status int) *Error {
	return &Error{Class: Refused, Status: status, Message: "the answer is not CleverTap's JSON: wrong host or path?"}
}

// decode reads a 2xx body into out, which embeds answer's fields.
func decode(raw []byte, status int, out any) error {
	if len(raw) == 0 || json.Unmarshal(raw, out) != nil {
		return notJSON(status)
	}
	return nil
}

// Connect checks account id, passcode and region. nil means that CleverTap
// said success; anything else is an *Error with its words.
func (c *Client) Connect(ctx context.Context, a Account, partner string) error {
	raw, status, err := c.call(ctx, a, http.MethodGet, a.BaseURL+"/v1/connect?partner="+url.QueryEscape(partner), nil)
	if err != nil {
		return err
	}
	var ans answer
	if err := decode(raw, status, &ans); err != nil {
		return err
	}
	if ans.Status != "success" {
		msg := clean(ans.text(), a)
		if msg == "" {
			msg = fmt.Sprintf("connect answered status %q", clean(ans.Status, a))
		}
		return &Error{Class: Refused, Status: status, Code: int(ans.Code), Message: msg}
	}
	return nil
}
