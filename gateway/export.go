package gateway

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// export serves the raw export in Mixpanel's shape
// (https://developer.mixpanel.com/reference/raw-event-export), each event once.
func (d *reader) export(q *question) error {
	req := &ingestionv1.ExportEventsRequest{Parent: q.project, FromDate: q.params.Get("from_date"), ToDate: q.params.Get("to_date"), Where: q.params.Get("where")}
	var err error
	if req.Events, err = q.texts("event"); err != nil {
		return err
	}
	if req.Limit, err = q.number("limit", 1, 100_000); err != nil {
		return err
	}
	ms, err := q.flag("time_in_ms", false)
	if err != nil {
		return err
	}
	stream, err := d.data.ExportEvents(q.ctx, req)
	if err != nil {
		return err
	}
	out := &longBody{w: q.w, contentType: "text/plain; charset=utf-8", gzip: acceptsGzip(q.r)}
	out.w.Header().Add("Vary", "Accept-Encoding")
	return out.finish(func() error {
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, e := range chunk.GetEvents() {
				if err := writeEvent(out, e, ms); err != nil {
					return err
				}
			}
		}
	}())
}

// writeEvent writes one line. The stored properties are merged with those that
// are columns of their own.
func writeEvent(out io.Writer, e *ingestionv1.ExportedEvent, ms bool) error {
	var stored map[string]json.RawMessage
	if p := e.GetPropertiesJson(); p != "" {
		if err := json.Unmarshal([]byte(p), &stored); err != nil {
			return fmt.Errorf("stored properties: %w", err)
		}
	}
	props := make(map[string]any, len(stored)+4)
	for k, v := range maps.All(stored) {
		props[k] = v
	}
	t := e.GetTime().AsTime()
	props["time"] = t.Unix()
	if ms {
		props["time"] = t.UnixMilli()
	}
	props["distinct_id"], props["$insert_id"] = e.GetDistinctId(), e.GetInsertId()
	// An event is judged when it is received, so both times are one.
	props["$mp_api_timestamp_ms"] = e.GetProcessingTime().AsTime().UnixMilli()
	props["mp_processing_time_ms"] = props["$mp_api_timestamp_ms"]
	line, err := json.Marshal(map[string]any{"event": e.GetEvent(), "properties": props})
	if err != nil {
		return err
	}
	_, err = out.Write(append(line, '\n'))
	return err
}

// acceptsGzip says whether the client asked for gzip.
func acceptsGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, quality, _ := strings.Cut(part, ";")
		if n := strings.ToLower(strings.TrimSpace(name)); n != "gzip" && n != "*" {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimPrefix(strings.ReplaceAll(quality, " ", ""), "q="), 64)
		return err != nil || q > 0
	}
	return false
}

// gzipAbove is the size of a body, in bytes, above which it is compressed.
const gzipAbove = 1400

// longBody is an answer of any length. It begins to be sent when it is longer than
// gzipAbove, which decides whether it is compressed.
type longBody struct {
	w           http.ResponseWriter
	contentType string
	gzip        bool

	held []byte
	out  *bufio.Writer // nil until it is sent
	gz   *gzip.Writer
}

// Write implements io.Writer.
func (b *longBody) Write(p []byte) (int, error) {
	if b.out != nil {
		return b.out.Write(p)
	}
	if b.held = append(b.held, p...); len(b.held) <= gzipAbove {
		return len(p), nil
	}
	b.w.Header().Set("Content-Type", b.contentType)
	var to io.Writer = b.w
	if b.gzip {
		b.w.Header().Set("Content-Encoding", "gzip")
		b.gz = gzip.NewWriter(b.w)
		to = b.gz
	}
	b.out = bufio.NewWriterSize(to, 64<<10)
	if _, err := b.out.Write(b.held); err != nil {
		return 0, err
	}
	b.held = nil
	return len(p), nil
}

// finish sends what is left, also of an empty body. When the body failed and
// nothing of it was sent, it returns the failure, to be answered; else it cuts the
// connection, so that half a body can't be taken for a whole one.
func (b *longBody) finish(failure error) error {
	if b.out == nil {
		if failure != nil {
			return failure
		}
		b.w.Header().Set("Content-Type", b.contentType)
		b.w.Header().Set("Content-Length", strconv.Itoa(len(b.held)))
		_, _ = b.w.Write(b.held) // the client went away
		return nil
	}
	if failure == nil {
		failure = b.out.Flush()
	}
	if failure == nil && b.gz != nil {
		failure = b.gz.Close()
	}
	if failure != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}
