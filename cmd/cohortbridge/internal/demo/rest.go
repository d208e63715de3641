package demo

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
)

// rest calls the system as a front end and a sender would: over HTTP.
type rest struct {
	c    roles.DevCredentials
	http *http.Client
}

func (r *rest) project() string { return "projects/" + r.c.ProjectID }

func (r *rest) do(ctx context.Context, method, target string, body []byte, head map[string]string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(r.c.ServiceAccount, r.c.ServiceSecret)
	for k, v := range head {
		req.Header.Set(k, v)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: HTTP %d: %s", method, req.URL.Path, resp.StatusCode, b)
	}
	return b, nil
}

// call makes a REST call; in may be nil.
func (r *rest) call(ctx context.Context, method, path string, in, out proto.Message) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = protojson.Marshal(in); err != nil {
			return err
		}
	}
	b, err := r.do(ctx, method, "http://"+r.c.HTTPAddr+"/v1/"+path, body, map[string]string{"Content-Type": "application/json"})
	if err != nil {
		return err
	}
	return protojson.Unmarshal(b, out)
}

// watch follows a server stream of newline JSON to its end.
func (r *rest) watch(ctx context.Context, path string, each func(json.RawMessage) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.c.HTTPAddr+"/v1/"+path, nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(r.c.ServiceAccount, r.c.ServiceSecret)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var m struct{ Result, Error json.RawMessage }
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("%s: HTTP %d: %s", path, resp.StatusCode, lines.Bytes())
		}
		if m.Error != nil || m.Result == nil {
			return fmt.Errorf("%s: %s", path, lines.Bytes())
		}
		if err := each(m.Result); err != nil {
			return err
		}
	}
	return lines.Err()
}

// importBatch sends events as gzip to /import and returns how many were imported.
func (r *rest) importBatch(ctx context.Context, events []event) (int, error) {
	raw, err := json.Marshal(events)
	if err != nil {
		return 0, err
	}
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(raw); err != nil {
		return 0, err
	}
	if err := zw.Close(); err != nil {
		return 0, err
	}
	b, err := r.do(ctx, http.MethodPost, "http://"+r.c.HTTPAddr+"/import?strict=1&project_id="+url.QueryEscape(r.c.ProjectID), zipped.Bytes(),
		map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"})
	if err != nil {
		return 0, err
	}
	var answer struct {
		Imported int `json:"num_records_imported"`
	}
	return answer.Imported, json.Unmarshal(b, &answer)
}

// engage sends profile updates; the answer is Mixpanel's bare 1.
func (r *rest) engage(ctx context.Context, updates []update) error {
	raw, err := json.Marshal(updates)
	if err != nil {
		return err
	}
	b, err := r.do(ctx, http.MethodPost, "http://"+r.c.HTTPAddr+"/engage", raw, map[string]string{"Content-Type": "application/json"})
	if err != nil {
		return err
	}
	if string(bytes.TrimSpace(b)) != "1" {
		return fmt.Errorf("/engage answered %q", b)
	}
	return nil
}

// sandboxJSON reads from or posts to the sandbox.
func (r *rest) sandboxJSON(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	b, err := r.do(ctx, method, "http://"+r.c.SandboxAddr+path, body, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}
