#include "index_reader.h"

#include <algorithm>
#include <vector>

namespace serverless_triton::loader {

HeaderIndex read_index(const FileImage& file) {
    std::vector<std::byte> head(std::min(file.bytes(), kLengthBytes));
    file.read(0, head);
    head.resize(header_extent(head, file.bytes(), file.path()));
    file.read(0, head);
    return parse_header(head, file.bytes(), file.path());
}

}  // namespace serverless_triton::loader
