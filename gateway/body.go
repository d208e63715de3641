package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// patience is how long an answer that needs nothing of the body is kept back for
	// one that is there already. Who sent it whole keeps the connection.
	patience = 50 * time.Millisecond
	// linger is how long after such an answer its connection stays, so that a sender
	// who is still writing can read it.
	linger = 2 * time.Second
	// maxLeft is how much of a body is read for the sake of the connection.
	maxLeft = 256 << 10
)

// bodies bounds how long the body of a request may take to arrive, whatever the
// route, and lets no answer wait for a body that its handler did not ask for:
// net/http by itself reads what is left before it answers, however long it takes.
func bodies(next http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			next.ServeHTTP(w, r)
			return
		}
		b := &incoming{ReadCloser: r.Body, control: http.NewResponseController(w)}
		b.within(timeout)
		// A server that stops waits for no body.
		stop := context.AfterFunc(r.Context(), func() {
			if !b.ended.Load() {
				b.within(0)
			}
		})
		defer stop()
		r2 := *r
		r2.Body = b
		early := &earlyAnswer{ResponseWriter: w, r: r, body: b}
		next.ServeHTTP(early, &r2)
		early.settle() // nothing was written
	})
}

// incoming is a body that knows how far it has come.
type incoming struct {
	io.ReadCloser
	control *http.ResponseController
	read    int64
	began   bool
	failed  bool
	ended   atomic.Bool
}

// within bounds how long the next reads may take together. Not every writer has
// deadlines; a server's has.
func (b *incoming) within(d time.Duration) { _ = b.control.SetReadDeadline(time.Now().Add(d)) }

// Read implements io.Reader.
func (b *incoming) Read(p []byte) (int, error) {
	b.began = true
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		if !b.ended.Swap(true) {
			_ = b.control.SetReadDeadline(time.Time{}) // see within; the handler may take its time
		}
	case err != nil:
		b.failed = true
	}
	return n, err
}

// Close leaves the rest to the server, which reads it after the answer.
func (*incoming) Close() error { return nil }

// earlyAnswer is an answer that may come before the body.
type earlyAnswer struct {
	http.ResponseWriter
	r       *http.Request
	body    *incoming
	settled bool
}

// settle decides, before the first byte of the answer, what becomes of the rest of
// the body and of the connection.
func (a *earlyAnswer) settle() {
	if a.settled {
		return
	}
	a.settled = true
	b := a.body
	if b.ended.Load() || a.r.ProtoMajor > 1 { // HTTP/2 answers when it likes
		return
	}
	asks := strings.EqualFold(a.r.Header.Get("Expect"), "100-continue") && !b.began // reading would call for the body
	if !b.failed && !asks && a.r.ContentLength-b.read <= maxLeft {
		b.within(patience)
		_, _ = io.CopyN(io.Discard, b, maxLeft) // whether it ended is what counts
	}
	if !b.ended.Load() {
		// What is left of the body must not pass for a request.
		a.Header().Set("Connection", "close")
		if a.r.Context().Err() != nil { // the server stops, or the sender is gone
			b.within(patience)
		} else {
			b.within(linger)
		}
	}
}

// WriteHeader implements http.ResponseWriter.
func (a *earlyAnswer) WriteHeader(status int) {
	if status >= http.StatusOK {
		a.settle()
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *earlyAnswer) Write(p []byte) (int, error) {
	a.settle()
	return a.ResponseWriter.Write(p)
}

// Flush lets streams through.
func (a *earlyAnswer) Flush() {
	a.settle()
	if f, ok := a.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (a *earlyAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// bodyProblem says with which status, and why, a body that can't be read is refused.
// On 503 the sender should come back.
func bodyProblem(err error) (code int, text string) {
	if over, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusRequestEntityTooLarge, tooLarge(over.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return http.StatusServiceUnavailable, "the body did not arrive in time"
	}
	return http.StatusBadRequest, "the request body broke off"
}

func tooLarge(limit int64) string { return fmt.Sprintf("request exceeds max limit of %d bytes", limit) }

// watched is a body that remembers why it could not be read.
type watched struct {
	io.ReadCloser
	err error
}

// Read implements io.Reader.
func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// bounded limits the bodies of REST, and reads none where it has no meaning: of
// methods that have none in the contracts, and of callers without a credential, who
// may do nothing whatever the body says.
func bounded(rest http.Handler, limit int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r2 := *r
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodDelete || r.Header.Get("Authorization") == "":
			r2.Body = http.NoBody
		case r.ContentLength > limit:
			r2.Body = &watched{ReadCloser: &refused{&http.MaxBytesError{Limit: limit}}}
		default:
			r2.Body = &watched{ReadCloser: http.MaxBytesReader(w, r.Body, limit)}
		}
		rest.ServeHTTP(w, &r2)
	})
}

// refused is a body that is not read at all.
type refused struct{ err error }

// Read implements io.Reader.
func (r *refused) Read([]byte) (int, error) { return 0, r.err }

// Close implements io.Closer.
func (*refused) Close() error { return nil }
