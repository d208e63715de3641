// Package wire reads and answers requests in the forms Mixpanel's senders use:
// JSON arrays and objects, NDJSON, form fields, base64 with unescaped '+',
// beacons, GET; and every form of answer. It knows bytes, not events.
package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"

	"github.com/cohortbridge/cohortbridge/platform/basicauth"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
)

// Endpoint is the route of a request.
type Endpoint uint8

// The four routes.
const (
	Track Endpoint = iota + 1
	Import
	Engage
	Groups
)

// String is the route's name.
func (e Endpoint) String() string {
	return [...]string{"unknown", "track", "import", "engage", "groups"}[min(e, Groups)%5]
}

// Request is one HTTP request as it came.
type Request struct {
	// Endpoint is the route it was sent to.
	Endpoint Endpoint
	// Method is GET or POST.
	Method string
	// ContentType, ContentEncoding and Authorization are the headers' values.
	ContentType, ContentEncoding, Authorization string
	// RawQuery is the query string without the question mark.
	RawQuery string
	// ClientIP is the sender's address without port; Host is the Host header.
	ClientIP, Host string
	// Body is the body, still compressed.
	Body []byte
}

// Limits bound what a request may cost.
type Limits struct {
	// Body is the greatest size of the body as sent, in bytes.
	Body int
	// Decompressed is the greatest size after decompression, in bytes.
	Decompressed int
	// Grow is asked before a body grows by n bytes in memory; its error ends the
	// request. Nil always agrees.
	Grow func(n int) error
}

// Params are the parameters of a request, from its query and its form body.
type Params struct {
	// Verbose asks for a JSON answer, IP to use the client's address, Img for a pixel
	// (never on /import).
	Verbose, IP, Img bool
	// StrictSet says `strict` was given; Strict its value.
	StrictSet, Strict bool
	// Callback is a checked JavaScript name to call with the answer, or empty, as it
	// always is on /import.
	Callback string
	// ProjectID is the decimal project_id, or empty.
	ProjectID string
}

// Payload is an opened request.
type Payload struct {
	// Params are its parameters.
	Params Params
	// JSON is the data: an array, one object, or NDJSON.
	JSON []byte
	// Lines says JSON is NDJSON: one value a line.
	Lines bool

	buf *bytes.Buffer
}

// Release gives the payload's memory back. JSON may not be used afterwards.
func (p *Payload) Release() {
	if p.buf != nil && p.buf.Cap() <= 16<<20 {
		buffers.Put(p.buf)
	}
	p.buf, p.JSON = nil, nil
}

var (
	buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	readers sync.Pool
)

// Refusal is a request that is refused as a whole.
type Refusal struct {
	// Status is the HTTP status.
	Status int
	// Text is the error for the sender; it holds nothing of the body.
	Text string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Text }

// QueryParams reads the parameters of a request's query alone.
func QueryParams(r *Request) (p Params) {
	query, _ := url.ParseQuery(r.RawQuery) // what can be read counts
	p.read(r.Endpoint, query)
	return p
}

// ProjectInForm reports whether the project of an /import can only be told after
// opening: a service account, which needs a project_id, without one in the query,
// and a body that may be a form.
func (r *Request) ProjectInForm(query *Params) bool {
	if query.ProjectID != "" || r.Method != http.MethodPost || len(r.Body) == 0 {
		return false
	}
	switch ct, _, _ := mime.ParseMediaType(r.ContentType); ct {
	case "application/json", "application/x-ndjson", "application/ndjson":
		return false
	}
	_, secret, ok := basicauth.Parse(r.Authorization)
	return ok && secret != ""
}

// Open decompresses a request and finds its parameters and data. Params of the
// payload are good even when it is refused. The error is a *Refusal, or what
// Grow answered.
func Open(r *Request, lim Limits) (*Payload, error) {
	p := &Payload{}
	query, _ := url.ParseQuery(r.RawQuery) // what can be read counts
	p.Params.read(r.Endpoint, query)
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return p, &Refusal{http.StatusMethodNotAllowed, "method not allowed"}
	}
	if len(r.Body) > lim.Body {
		return p, tooLarge(lim.Body)
	}
	body := r.Body
	switch strings.ToLower(strings.TrimSpace(r.ContentEncoding)) {
	case "", "identity":
	case "gzip":
		if len(body) > 0 {
			var err error
			if body, err = p.inflate(body, &lim); err != nil {
				return p, err
			}
		}
	default:
		return p, &Refusal{http.StatusUnsupportedMediaType, "unsupported content encoding: only gzip"}
	}
	if len(body) > lim.Decompressed {
		return p, tooLarge(lim.Decompressed)
	}
	data, form, err := p.locate(r, bytes.TrimPrefix(body, []byte("\ufeff")), query) // Windows tools begin with it
	if err != nil {
		return p, err
	}
	if form {
		if data, err = decodeData(data); err != nil {
			return p, err
		}
	}
	p.JSON = event.Repair(data)
	return p, nil
}

// locate finds the data in the body or the query; form says it was a `data` parameter.
func (p *Payload) locate(r *Request, body []byte, query url.Values) (data []byte, form bool, err error) {
	if r.Method == http.MethodGet || len(body) == 0 {
		if !query.Has("data") {
			return nil, false, &Refusal{http.StatusBadRequest, "no data"}
		}
		return []byte(query.Get("data")), true, nil
	}
	ct, _, _ := mime.ParseMediaType(r.ContentType)
	first := firstByte(body)
	switch {
	case ct == "application/x-ndjson" || ct == "application/ndjson":
		p.Lines = true
		return body, false, nil
	case ct == "application/json" || first == '[' || first == '{':
		return body, false, nil
	}
	values, _ := url.ParseQuery(string(body)) // a literal '%' in unescaped base64 can't occur; what can be read counts
	p.Params.read(r.Endpoint, values)
	if !values.Has("data") {
		return nil, false, &Refusal{http.StatusBadRequest, "no data parameter in the form"}
	}
	return []byte(values.Get("data")), true, nil
}

func firstByte(b []byte) byte {
	for _, c := range b {
		if c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return c
		}
	}
	return 0
}

// decodeData reads the value of a `data` parameter: JSON, or base64 of it in
// which a form parser has turned '+' into a space.
func decodeData(b []byte) ([]byte, error) {
	if c := firstByte(b); c == '{' || c == '[' || c == 0 {
		return b, nil
	}
	s := bytes.ReplaceAll(bytes.TrimSpace(b), []byte(" "), []byte("+"))
	s = bytes.TrimRight(s, "=")
	out := make([]byte, base64.RawStdEncoding.DecodedLen(len(s)))
	n, err := base64.RawStdEncoding.Decode(out, s)
	if err != nil {
		return nil, &Refusal{http.StatusBadRequest, "data is neither JSON nor base64"}
	}
	return joinSurrogates(out[:n]), nil
}

func (p *Params) read(e Endpoint, v url.Values) {
	truthy := func(k string) bool { s := v.Get(k); return s != "" && s != "0" && s != "false" }
	if v.Has("verbose") {
		p.Verbose = truthy("verbose")
	}
	if v.Has("ip") {
		p.IP = truthy("ip")
	}
	if v.Has("strict") {
		p.StrictSet, p.Strict = true, truthy("strict")
	}
	if v.Has("project_id") {
		p.ProjectID = v.Get("project_id")
	}
	if e == Import { // its answers are JSON or a digit, and nothing that a page of another site can read
		return
	}
	if v.Has("img") {
		p.Img = truthy("img")
	}
	if cb := v.Get("callback"); cb != "" && validCallback(cb) {
		p.Callback = cb
	}
}

// validCallback accepts a JavaScript member expression of names and numeric
// indexes, so that nothing of the request can become a script or markup.
func validCallback(s string) bool {
	if len(s) > 128 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '$'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '.' && c != '[' && c != ']') {
			return false
		}
	}
	return true
}

// maxRatio is how much deflate can shrink: what is announced beyond is a lie.
const maxRatio = 1032

func (p *Payload) inflate(body []byte, lim *Limits) ([]byte, error) {
	zr, ok := readers.Get().(*gzip.Reader)
	var err error
	if ok {
		err = zr.Reset(bytes.NewReader(body))
	} else {
		zr, err = gzip.NewReader(bytes.NewReader(body))
	}
	if err != nil {
		return nil, &Refusal{http.StatusBadRequest, "the body is not valid gzip"}
	}
	defer readers.Put(zr)
	p.buf, _ = buffers.Get().(*bytes.Buffer)
	p.buf.Reset()
	// The trailer's size is a hint: it may lie, and tells the last member's only.
	announced := 0
	if n := len(body); n > 18 {
		announced = min(int(binary.LittleEndian.Uint32(body[n-4:])), lim.Decompressed, n*maxRatio)
	}
	if err := lim.grow(announced); err != nil {
		return nil, err
	}
	p.buf.Grow(announced + bytes.MinRead)
	// One byte more than announced tells "just fits" from "goes on": a bomb costs the limit, not its size.
	n, err := io.Copy(p.buf, io.LimitReader(zr, int64(announced)+1))
	if err == nil && n > int64(announced) && announced < lim.Decompressed {
		if err := lim.grow(lim.Decompressed - announced); err != nil {
			return nil, err
		}
		var more int64
		more, err = io.Copy(p.buf, io.LimitReader(zr, int64(lim.Decompressed-announced)))
		n += more
	}
	switch {
	case n > int64(lim.Decompressed):
		return nil, tooLarge(lim.Decompressed)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, &Refusal{http.StatusBadRequest, "the gzip body is cut off, or followed by something else"}
	case err != nil:
		return nil, &Refusal{http.StatusBadRequest, "the body is not valid gzip"}
	}
	return p.buf.Bytes(), nil
}

func (l *Limits) grow(n int) error {
	if l.Grow == nil {
		return nil
	}
	return l.Grow(n)
}
