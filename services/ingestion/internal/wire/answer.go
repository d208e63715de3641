package wire

import (
	"encoding/base64"
	"fmt"
	"net/http"

	"github.com/go-json-experiment/json"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
)

// Response is an HTTP answer.
type Response struct {
	// Status is the HTTP status.
	Status int
	// ContentType is the type of Body.
	ContentType string
	// Headers are further headers.
	Headers map[string]string
	// Body is the answer.
	Body []byte
}

const jsonType = "application/json"

// pixel is a transparent 1×1 GIF of 43 bytes.
var pixel, _ = base64.StdEncoding.DecodeString("R0lGODlhAQABAPAAAAAAAAAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")

func tooLarge(limit int) *Refusal {
	return &Refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("request exceeds max limit of %d bytes", limit)}
}

// Invalid refuses a body that can't be read.
func Invalid(text string) *Refusal { return &Refusal{http.StatusBadRequest, text} }

// InvalidJSON refuses a body whose JSON breaks at a byte offset.
func InvalidJSON(offset int64, duplicate bool) *Refusal {
	if duplicate {
		return Invalid(fmt.Sprintf("invalid JSON near byte %d: a name is given twice in one object", offset))
	}
	return Invalid(fmt.Sprintf("invalid JSON near byte %d", offset))
}

// TooMany refuses a batch of more than limit elements. It is a 413, because
// clients halve a batch on that status and drop it on a 400.
func TooMany(limit int) *Refusal {
	return &Refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("request exceeds max limit of %d records", limit)}
}

// Refused answers a request that is refused as a whole, in the form its endpoint uses.
func Refused(e Endpoint, p *Params, r *Refusal) *Response {
	if e != Import && r.Status == http.StatusBadRequest {
		if p.Strict {
			return failed(0, r.Text, nil)
		}
		return Simple(p, false, r.Text)
	}
	if e == Import && r.Status == http.StatusBadRequest {
		if !p.StrictSet {
			return Simple(p, false, r.Text)
		}
		return failed(0, r.Text, nil)
	}
	resp := &Response{Status: r.Status, ContentType: jsonType}
	if e != Import && (r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden) {
		resp.Body = encode(map[string]any{"error": r.Text, "status": "error"})
		return resp
	}
	resp.Body = encode(map[string]any{"code": r.Status, "error": r.Text, "status": http.StatusText(r.Status)})
	return resp
}

// Busy answers that the server can't take the request now and when to come back.
func Busy(status int, text string, seconds int) *Response {
	return &Response{
		Status: status, ContentType: jsonType, Headers: map[string]string{"Retry-After": fmt.Sprint(max(1, seconds))},
		Body: encode(map[string]any{"code": status, "error": text, "status": http.StatusText(status)}),
	}
}

// Simple is the answer of /track, /engage and /groups: callback, pixel, verbose
// object or the single digit, in this order of preference.
func Simple(p *Params, ok bool, text string) *Response {
	digit := "0"
	if ok {
		digit, text = "1", ""
	}
	object := func() []byte {
		if ok {
			return []byte(`{"error":null,"status":1}`)
		}
		return encode(map[string]any{"error": text, "status": 0})
	}
	switch {
	case p.Callback != "":
		arg := []byte(digit)
		if p.Verbose {
			arg = object()
		}
		return &Response{Status: 200, ContentType: "text/javascript", Headers: map[string]string{"X-Content-Type-Options": "nosniff"}, Body: fmt.Appendf(nil, "%s(%s)", p.Callback, arg)}
	case p.Img:
		return &Response{Status: 200, ContentType: "image/gif", Headers: map[string]string{"Cache-Control": "no-store"}, Body: pixel}
	case p.Verbose:
		return &Response{Status: 200, ContentType: jsonType, Body: object()}
	default:
		return &Response{Status: 200, ContentType: "text/plain", Body: []byte(digit)}
	}
}

// Imported answers /import: imported is the number stored, failures the events
// that were not.
func Imported(p *Params, imported int, failures []*event.Failure) *Response {
	switch {
	case !p.StrictSet && p.Verbose && imported == 0 && len(failures) > 0:
		return &Response{Status: 200, ContentType: jsonType, Body: encode(map[string]any{"code": 200, "error": failures[0].Message, "num_records_imported": 0, "status": 0})}
	case !p.StrictSet && p.Verbose:
		return &Response{Status: 200, ContentType: jsonType, Body: fmt.Appendf(nil, `{"code":200,"error":null,"num_records_imported":%d,"status":1}`, imported)}
	case !p.StrictSet:
		return Simple(p, imported > 0 || len(failures) == 0, "")
	case p.Strict && len(failures) > 0:
		return failed(imported, "some data points in the request failed validation", failures)
	default:
		return &Response{Status: 200, ContentType: jsonType, Body: fmt.Appendf(nil, `{"code":200,"num_records_imported":%d,"status":"OK"}`, imported)}
	}
}

// Updated answers /engage and /groups: applied is the number of objects that
// took effect.
func Updated(p *Params, applied int, failures []*event.Failure) *Response {
	if p.Strict && len(failures) > 0 {
		return failed(applied, "some data points in the request failed validation", failures)
	}
	if len(failures) == 0 {
		return Simple(p, true, "")
	}
	if applied == 0 {
		return Simple(p, false, failures[0].Message)
	}
	// At least one valid object is success by the ingestion wording; a verbose
	// caller still learns what was left out.
	if p.Verbose && p.Callback == "" && !p.Img {
		return &Response{Status: 200, ContentType: jsonType, Body: encode(map[string]any{"error": failures[0].Message, "status": 1})}
	}
	return Simple(p, true, "")
}

type failedRecord struct {
	Index    int    `json:"index"`
	InsertID string `json:"insert_id"`
	Dollar   string `json:"$insert_id"`
	Field    string `json:"field"`
	Message  string `json:"message"`
}

func failed(imported int, text string, failures []*event.Failure) *Response {
	rows := make([]failedRecord, 0, len(failures))
	for _, f := range failures {
		rows = append(rows, failedRecord{Index: f.Index, InsertID: f.InsertID, Dollar: f.InsertID, Field: f.Field, Message: f.Message})
	}
	return &Response{Status: http.StatusBadRequest, ContentType: jsonType, Body: encode(struct {
		Code     int            `json:"code"`
		Error    string         `json:"error"`
		Status   string         `json:"status"`
		Imported int            `json:"num_records_imported"`
		Failed   []failedRecord `json:"failed_records"`
	}{http.StatusBadRequest, text, http.StatusText(http.StatusBadRequest), imported, rows})}
}

func encode(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil { // only plain values come here
		return []byte(`{"error":"internal","status":0}`)
	}
	return b
}
