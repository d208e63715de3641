package channel

import (
	"context"
	"encoding/json"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// profiles writes users as records of /1/upload: the part that the channels which
// work without partner messages have in common.
type profiles struct {
	cfg     Config
	columns []column
}

// Encode implements Channel.
func (p *profiles) Encode(m Member) (Encoded, string) {
	id, skip := identify(m)
	if skip != "" {
		return Encoded{}, skip
	}
	b := make([]byte, 0, 192)
	b = append(b, `{"type":"profile","identity":`...)
	b = append(b, quote(id)...)
	b = append(b, `,"profileData":{`...)
	at := len(b)
	b, warnings := fields(b, p.columns, m.Columns, true)
	if len(b) > at {
		b = append(b[:at], b[at+1:]...) // the first field has no comma before it
	}
	return Encoded{Identifier: id, Record: append(b, "}}"...), Warnings: warnings}, ""
}

func (p *profiles) upload(ctx context.Context, records [][]byte) ([]Refusal, error) {
	refused, err := p.cfg.Client.Upload(ctx, p.cfg.Account, records)
	if err != nil {
		return nil, err
	}
	out := make([]Refusal, 0, len(refused))
	for _, r := range refused {
		out = append(out, Refusal{Index: r.Index, Code: r.Code, Retryable: r.Retryable()})
	}
	return out, nil
}

// Amend implements Amender. CleverTap refuses the whole record for an address or a
// number it does not like: without it, the user is taken.
func (p *profiles) Amend(record []byte, code int) (amended []byte, warning string) {
	var field string
	switch code {
	case clevertap.CodeEmail:
		field, warning = "Email", WarnEmail
	case clevertap.CodePhone:
		field, warning = "Phone", WarnPhone
	default:
		return nil, ""
	}
	var rec struct {
		Type     string                     `json:"type"`
		Identity string                     `json:"identity"`
		Data     map[string]json.RawMessage `json:"profileData"`
	}
	if json.Unmarshal(record, &rec) != nil || rec.Data[field] == nil {
		return nil, ""
	}
	delete(rec.Data, field)
	amended, err := json.Marshal(rec)
	if err != nil {
		return nil, ""
	}
	return amended, warning
}
