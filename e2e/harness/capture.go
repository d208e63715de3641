package harness

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"sync"
)

// capture is everything the system said in places where no secret and nobody's
// data may appear: logs, spans, error answers.
var capture struct {
	mu      sync.Mutex
	sources []*captureBuffer
	secrets map[string]string
	exits   []func()
}

type captureBuffer struct {
	name string
	mu   sync.Mutex
	buf  bytes.Buffer
}

func newCapture(name string) *captureBuffer {
	b := &captureBuffer{name: name}
	capture.mu.Lock()
	defer capture.mu.Unlock()
	capture.sources = append(capture.sources, b)
	return b
}

// Write implements io.Writer.
func (b *captureBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *captureBuffer) tail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.buf.Bytes()
	return string(s[max(0, len(s)-4000):])
}

// Secret says that a value must appear nowhere in what is captured.
func Secret(what, value string) {
	if value == "" {
		return
	}
	capture.mu.Lock()
	defer capture.mu.Unlock()
	if capture.secrets == nil {
		capture.secrets = map[string]string{}
	}
	capture.secrets[value] = what
}

// OnExit runs f after all tests.
func OnExit(f func()) {
	capture.mu.Lock()
	defer capture.mu.Unlock()
	capture.exits = append(capture.exits, f)
}

// email is an address as the tests use them; example.org belongs to nobody.
var email = regexp.MustCompile(`[A-Za-z0-9._+-]+(@|%40)[A-Za-z0-9-]+\.(org|com|net)`)

// Finish searches everything that was captured and returns what must not be
// there. It also says how much it searched: nothing found in nothing proves nothing.
func Finish(w io.Writer) []string {
	capture.mu.Lock()
	defer capture.mu.Unlock()
	leaks, total := search(capture.sources, capture.secrets)
	_, _ = fmt.Fprintf(w, "searched %d bytes of %d captures for %d secrets and e-mail addresses: %d found\n", total, len(capture.sources), len(capture.secrets), len(leaks))
	for _, f := range capture.exits {
		f()
	}
	return leaks
}

// search looks for secrets and e-mail addresses and says how many bytes it read.
func search(sources []*captureBuffer, secrets map[string]string) (leaks []string, total int) {
	for _, b := range sources {
		b.mu.Lock()
		text := b.buf.Bytes()
		total += len(text)
		for value, what := range secrets {
			if i := bytes.Index(text, []byte(value)); i >= 0 {
				leaks = append(leaks, fmt.Sprintf("%s: the %s appears: …%s…", b.name, what, around(text, i)))
			}
		}
		if loc := email.FindIndex(text); loc != nil {
			leaks = append(leaks, fmt.Sprintf("%s: an e-mail address appears: …%s…", b.name, around(text, loc[0])))
		}
		b.mu.Unlock()
	}
	return leaks, total
}

func around(text []byte, i int) []byte { return text[max(0, i-80):min(len(text), i+80)] }

// Main runs the tests and fails when something leaked.
func Main(run func() int) {
	code := run()
	for _, l := range Finish(os.Stdout) {
		fmt.Fprintln(os.Stderr, "LEAK "+l)
		code = 1
	}
	os.Exit(code)
}
